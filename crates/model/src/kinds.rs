//! The kinds of a fleet repository, as people write them. The JSON Schemas that editors and the
//! validation use are generated from these types.

use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value, json};

use crate::{
    ids::{AppName, ClusterName, FleetName, InvalidId, RegionName, RuleName, TierName},
    policy::{Conflicts, Drift, HealthRule, IgnoreRule, PruneBudget},
    writer_rule::WriterRule,
};

/// The `apiVersion` of every document.
pub const API_VERSION: &str = "muster.dev/v1alpha1";

/// One layer of values, or the result of merging layers.
pub type Values = Map<String, Value>;

/// A document of a fleet repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Document<N, S> {
    /// Always `muster.dev/v1alpha1`.
    pub api_version: String,
    /// The kind of the document.
    pub kind: String,
    /// The name and labels of the document.
    pub metadata: Metadata<N>,
    /// The content of the document; its fields depend on the kind.
    pub spec: S,
}

/// The name and labels of a document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata<N> {
    /// The name of the document.
    pub name: N,
    /// Labels, for use in selectors and templates.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// The settings of the whole fleet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FleetSpec {
    /// A description of the fleet for people.
    #[serde(default)]
    pub description: Option<String>,
    /// The people or teams to call.
    #[serde(default)]
    pub contacts: Vec<Contact>,
    /// Values for every app in every cluster. This is the lowest layer; all others override it.
    #[serde(default)]
    pub values: Values,
    /// How many objects may be deleted in one cluster without approval.
    #[serde(default)]
    pub prune: PruneBudget,
    /// Fields of any app's objects that other field managers may set.
    #[serde(default)]
    pub ignore: Vec<IgnoreRule>,
}

/// A person or team to call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Contact {
    /// The name of the person or team.
    pub name: String,
    /// An e-mail address.
    #[serde(default)]
    pub email: Option<String>,
    /// A chat channel.
    #[serde(default)]
    pub chat: Option<String>,
    /// A telephone number.
    #[serde(default)]
    pub phone: Option<String>,
}

/// The recovery objectives that apps of this tier must meet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TierSpec {
    /// A description of the tier for people.
    #[serde(default)]
    pub description: Option<String>,
    /// Recovery point objective: how much data may be lost, as a duration such as `15m`.
    pub rpo: Span,
    /// Recovery time objective: how long it may take to serve again, as a duration such as `1h`.
    pub rto: Span,
    /// The modes that apps of this tier may use; any mode if empty.
    #[serde(default)]
    pub modes: Vec<Mode>,
}

/// A group of clusters that fail together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegionSpec {
    /// The location of the region.
    pub location: Location,
    /// The capacity of the region: a Kubernetes quantity for each resource.
    #[serde(default)]
    pub capacity: BTreeMap<String, String>,
    /// Values for every app in this region; they override the fleet's.
    #[serde(default)]
    pub values: Values,
}

/// A geographic location.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Location {
    /// Continent.
    pub continent: Continent,
    /// Country, as an ISO 3166-1 alpha-2 code.
    #[schemars(regex(pattern = "^[A-Z]{2}$"), extend("patternErrorMessage" = "use an ISO 3166-1 code of two capital letters, such as IE"))]
    pub country: String,
    /// City or site.
    #[serde(default)]
    pub city: Option<String>,
    /// Degrees north, from -90 to 90.
    #[schemars(with = "f64", range(min = -90, max = 90))]
    pub latitude: Number,
    /// Degrees east, from -180 to 180.
    #[schemars(with = "f64", range(min = -180, max = 180))]
    pub longitude: Number,
}

/// The two-letter code of a continent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Continent {
    /// Africa.
    Af,
    /// Antarctica.
    An,
    /// Asia.
    As,
    /// Europe.
    Eu,
    /// North America.
    Na,
    /// Oceania.
    Oc,
    /// South America.
    Sa,
}

/// A Kubernetes cluster. It belongs to the region in whose folder its document is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSpec {
    /// Addresses of the cluster by name (such as `ingress` or `api`), for use in templates.
    #[serde(default)]
    pub endpoints: BTreeMap<String, String>,
    /// Values for every app in this cluster; they override its region's.
    #[serde(default)]
    pub values: Values,
}

/// An application.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AppSpec {
    /// A description of the app for people.
    #[serde(default)]
    pub description: Option<String>,
    /// The team that owns the app.
    #[serde(default)]
    pub owner: Option<String>,
    /// The name of the app's tier.
    pub tier: TierName,
    /// How the app runs across regions.
    pub mode: Mode,
    /// The previous name of this app. The objects of the app with that name become this app's; they are
    /// not recreated. If `namespace` is not set, it defaults to the previous name. Set `namespace` before
    /// you remove this line or rename the app again: objects can't move to another namespace.
    #[serde(default)]
    pub formerly: Option<AppName>,
    /// The namespace of objects that do not name one. Defaults to `formerly` if that is set, otherwise to
    /// the app's name.
    #[serde(default)]
    #[schemars(regex(pattern = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"), extend("patternErrorMessage" = "a namespace has 1 to 63 lower-case letters, digits and '-'"))]
    pub namespace: Option<String>,
    /// Where the app may run; in any cluster if not set.
    #[serde(default)]
    pub placement: Placement,
    /// Apps that are applied before this one in each cluster.
    #[serde(default)]
    pub depends_on: Vec<AppName>,
    /// What to do if another field manager owns a field that this app sets differently: `fail` leaves the
    /// object unchanged and reports the field and its manager, `take` takes the field over.
    #[serde(default)]
    pub conflicts: Conflicts,
    /// What to do if an object is no longer as it was applied: `correct` reverts the change, `report`
    /// leaves it and shows it in the status.
    #[serde(default)]
    pub drift: Drift,
    /// Fields of this app's objects that other field managers may set, in addition to the fleet's `ignore`.
    #[serde(default)]
    pub ignore: Vec<IgnoreRule>,
    /// How the app's writer is handed over to another region with `muster app move`. Not for active-active apps.
    #[serde(default)]
    pub writer: Option<WriterRule>,
}

impl AppSpec {
    /// Returns the namespace of the app's objects that do not name one.
    #[must_use]
    pub fn namespace_of<'a>(&'a self, app: &'a AppName) -> &'a str {
        let named = self.namespace.as_deref();
        named.unwrap_or_else(|| self.formerly.as_ref().unwrap_or(app).as_str())
    }
}

/// How an app runs across regions.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The app serves in every cluster where it is placed.
    ActiveActive,
    /// The app writes in one region and follows in the others. It runs in one cluster of each region.
    ActivePassive,
    /// The app runs in one cluster of the fleet.
    Singleton,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ActiveActive => "active-active",
            Self::ActivePassive => "active-passive",
            Self::Singleton => "singleton",
        })
    }
}

/// The clusters where an app may run. A cluster must match every field that is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Placement {
    /// Names of regions, in the order in which they are candidates for the primary. All regions, sorted
    /// by name, if not set.
    #[serde(default)]
    pub regions: Vec<RegionName>,
    /// Names of clusters; any cluster if not set.
    #[serde(default)]
    pub clusters: Vec<ClusterName>,
    /// Labels that a cluster must have.
    #[serde(default)]
    pub cluster_selector: ClusterSelector,
}

/// Selects the clusters that have all of these labels.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSelector {
    /// Labels and the values that they must have.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

/// A duration in the form `30s`, `15m`, `1h30m` or `7d`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span {
    written: String,
    /// The parsed duration.
    pub duration: Duration,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.written)
    }
}

impl FromStr for Span {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId::new("duration", text, "write it as 30s, 15m, 1h30m or 7d");
        let mut duration = Duration::ZERO;
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .ok_or_else(invalid)?;
            let number: u64 = rest[..digits].parse().map_err(|_| invalid())?;
            let unit_end = rest[digits..]
                .find(|c: char| c.is_ascii_digit())
                .map_or(rest.len(), |n| digits + n);
            let seconds = match &rest[digits..unit_end] {
                "s" => 1,
                "m" => 60,
                "h" => 3_600,
                "d" => 86_400,
                _ => return Err(invalid()),
            };
            let part = number
                .checked_mul(seconds)
                .map(Duration::from_secs)
                .ok_or_else(invalid)?;
            duration = duration.checked_add(part).ok_or_else(invalid)?;
            rest = &rest[unit_end..];
        }
        if text.is_empty() {
            return Err(invalid());
        }
        Ok(Self {
            written: text.to_owned(),
            duration,
        })
    }
}

impl TryFrom<String> for Span {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.written
    }
}

impl JsonSchema for Span {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^([0-9]{1,9}[smhd])+$",
            "patternErrorMessage": "write a duration as 30s, 15m, 1h30m or 7d",
        })
    }
}

/// The kind of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A document with a [`FleetSpec`].
    Fleet,
    /// A document with a [`TierSpec`].
    Tier,
    /// A document with a [`RegionSpec`].
    Region,
    /// A document with a [`ClusterSpec`].
    Cluster,
    /// A document with an [`AppSpec`].
    App,
    /// A document with a [`HealthRule`].
    HealthRule,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::Fleet,
        Self::Tier,
        Self::Region,
        Self::Cluster,
        Self::App,
        Self::HealthRule,
    ];

    /// Returns the value of the `kind` field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fleet => "Fleet",
            Self::Tier => "Tier",
            Self::Region => "Region",
            Self::Cluster => "Cluster",
            Self::App => "App",
            Self::HealthRule => "HealthRule",
        }
    }

    /// Returns the JSON Schema (2020-12) of documents of this kind.
    #[must_use]
    pub fn schema(self) -> Value {
        let generator = SchemaSettings::draft2020_12()
            .with(|s| s.inline_subschemas = true)
            .into_generator();
        let schema = match self {
            Self::Fleet => generator.into_root_schema_for::<Document<FleetName, FleetSpec>>(),
            Self::Tier => generator.into_root_schema_for::<Document<TierName, TierSpec>>(),
            Self::Region => generator.into_root_schema_for::<Document<RegionName, RegionSpec>>(),
            Self::Cluster => generator.into_root_schema_for::<Document<ClusterName, ClusterSpec>>(),
            Self::App => generator.into_root_schema_for::<Document<AppName, AppSpec>>(),
            Self::HealthRule => generator.into_root_schema_for::<Document<RuleName, HealthRule>>(),
        };
        let mut schema = schema.to_value();
        schema["title"] = json!(self.as_str());
        schema["description"] = json!(format!(
            "Kind {} of a Muster fleet repository.",
            self.as_str()
        ));
        schema["properties"]["apiVersion"] = json!({"const": API_VERSION});
        schema["properties"]["kind"] = json!({"const": self.as_str()});
        if matches!(self, Self::Cluster | Self::Fleet) {
            // Every field of these specs has a default, so `spec` itself is optional.
            schema["required"] = json!(["apiVersion", "kind", "metadata"]);
        }
        schema
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| {
                InvalidId::new(
                    "kind",
                    text,
                    "use Fleet, Tier, Region, Cluster, App or HealthRule",
                )
            })
    }
}

#[cfg(test)]
mod tests;

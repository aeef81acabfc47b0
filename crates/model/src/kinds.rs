//! The kinds of a fleet repository, as they are written. Their JSON Schemas, which editors and the
//! validation use, are made from these very types.

use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value, json};

use crate::{
    ids::{AppName, ClusterName, FleetName, InvalidId, RegionName, RuleName, TierName},
    policy::{Conflicts, Drift, HealthRule, IgnoreRule, PruneBudget},
};

/// The `apiVersion` of every document.
pub const API_VERSION: &str = "muster.dev/v1alpha1";

/// Values, as they are layered.
pub type Values = Map<String, Value>;

/// A whole document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Document<N, S> {
    /// Always `muster.dev/v1alpha1`.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// Name and labels.
    pub metadata: Metadata<N>,
    /// What the document says.
    pub spec: S,
}

/// A document's name and labels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata<N> {
    /// The name.
    pub name: N,
    /// Labels, for selectors and templates.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// The fleet as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FleetSpec {
    /// What this fleet is, for people.
    #[serde(default)]
    pub description: Option<String>,
    /// Who to call.
    #[serde(default)]
    pub contacts: Vec<Contact>,
    /// Values of every app in every cluster: the lowest layer.
    #[serde(default)]
    pub values: Values,
    /// How much a change may delete in one cluster before a person is asked.
    #[serde(default)]
    pub prune: PruneBudget,
    /// Fields of any app's objects that others may set.
    #[serde(default)]
    pub ignore: Vec<IgnoreRule>,
}

/// A person or team to call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Contact {
    /// Their name.
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

/// A promise of recovery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TierSpec {
    /// What this tier is for, for people.
    #[serde(default)]
    pub description: Option<String>,
    /// Recovery point objective: how much data may be lost, as a time such as `15m`.
    pub rpo: Span,
    /// Recovery time objective: how long it may take to serve again, as a time such as `1h`.
    pub rto: Span,
    /// The modes with which an app can keep this promise; any where this is empty.
    #[serde(default)]
    pub modes: Vec<Mode>,
}

/// Clusters that fail together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegionSpec {
    /// Where it is.
    pub location: Location,
    /// What it can carry, as Kubernetes quantities by resource.
    #[serde(default)]
    pub capacity: BTreeMap<String, String>,
    /// Values of every app in this region, over the fleet's.
    #[serde(default)]
    pub values: Values,
}

/// A place on earth.
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

/// A continent's usual two-letter code.
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

/// One Kubernetes cluster. Its region is the folder it stands in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSpec {
    /// Where it is reached, by name (`ingress`, `api`), for templates.
    #[serde(default)]
    pub endpoints: BTreeMap<String, String>,
    /// Values of every app in this cluster, over its region's.
    #[serde(default)]
    pub values: Values,
}

/// An application.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AppSpec {
    /// What it is, for people.
    #[serde(default)]
    pub description: Option<String>,
    /// The team that owns it.
    #[serde(default)]
    pub owner: Option<String>,
    /// Its tier.
    pub tier: TierName,
    /// How it runs over regions.
    pub mode: Mode,
    /// The name that this app had before. Its objects under that name become this app's, as they are.
    /// Where `namespace` is left out, it stays what it was under the old name, so write it down before
    /// you remove this line or rename the app once more: objects can't move to another namespace.
    #[serde(default)]
    pub formerly: Option<AppName>,
    /// Namespace of its objects that name none. Where this is left out: the app's name, or the one that
    /// it had before (`formerly`).
    #[serde(default)]
    #[schemars(regex(pattern = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"), extend("patternErrorMessage" = "a namespace has 1 to 63 lower-case letters, digits and '-'"))]
    pub namespace: Option<String>,
    /// Where it runs; everywhere where this is left out.
    #[serde(default)]
    pub placement: Placement,
    /// Apps that are applied before it in each cluster.
    #[serde(default)]
    pub depends_on: Vec<AppName>,
    /// Where another field manager has a field that this app wants otherwise: `fail` leaves the object
    /// and reports the field and its manager, `take` takes the field over.
    #[serde(default)]
    pub conflicts: Conflicts,
    /// Where an object is no longer as it was applied: `correct` puts it back, `report` leaves it and
    /// shows it.
    #[serde(default)]
    pub drift: Drift,
    /// Fields of this app's objects that others may set, besides those of the fleet.
    #[serde(default)]
    pub ignore: Vec<IgnoreRule>,
}

impl AppSpec {
    /// The namespace of the app's objects that name none.
    #[must_use]
    pub fn namespace_of<'a>(&'a self, app: &'a AppName) -> &'a str {
        let named = self.namespace.as_deref();
        named.unwrap_or_else(|| self.formerly.as_ref().unwrap_or(app).as_str())
    }
}

/// How an app runs over regions.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Serves in every cluster it is placed in.
    ActiveActive,
    /// Writes in one region and follows in the others: one cluster a region carries it.
    ActivePassive,
    /// Runs in one cluster of the fleet.
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

/// Where an app may run. Each part narrows the choice.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Placement {
    /// Regions; their order is the order of candidates for the primary. All, by name, where this is
    /// left out.
    #[serde(default)]
    pub regions: Vec<RegionName>,
    /// Clusters by name.
    #[serde(default)]
    pub clusters: Vec<ClusterName>,
    /// Clusters by label.
    #[serde(default)]
    pub cluster_selector: ClusterSelector,
}

/// Clusters that have all these labels.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSelector {
    /// Labels and their values.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

/// A length of time as people write it: `30s`, `15m`, `1h30m`, `7d`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span {
    written: String,
    /// The time itself.
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

/// The kinds by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`FleetSpec`].
    Fleet,
    /// [`TierSpec`].
    Tier,
    /// [`RegionSpec`].
    Region,
    /// [`ClusterSpec`].
    Cluster,
    /// [`AppSpec`].
    App,
    /// [`HealthRule`].
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

    /// The word in `kind:`.
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

    /// The JSON Schema (2020-12) of this kind's documents.
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
            // Everything in their spec has a default, so it may be left out.
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
mod tests {
    use super::*;

    #[test]
    fn spans_are_what_people_write() {
        for (text, seconds) in [
            ("0s", 0),
            ("30s", 30),
            ("15m", 900),
            ("1h30m", 5_400),
            ("7d", 604_800),
        ] {
            assert_eq!(
                text.parse::<Span>().unwrap().duration,
                Duration::from_secs(seconds)
            );
        }
        for text in [
            "",
            "5",
            "m",
            "5 m",
            "-1s",
            "1y",
            "99999999999999999999d",
            "18446744073709551615d",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn schemas_refuse_what_they_do_not_know() {
        for kind in Kind::ALL {
            let schema = kind.schema();
            assert_eq!(schema["additionalProperties"], json!(false), "{kind}");
            assert!(!schema.to_string().contains("$ref"), "{kind}");
        }
        insta::assert_json_snapshot!("app-schema", Kind::App.schema());
    }
}

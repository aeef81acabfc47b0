//! Generates the common files of the fleet repositories for tests and benchmarks.

use std::collections::BTreeMap;

/// The files of a repository: their contents by path.
pub type Files = BTreeMap<String, String>;

/// Returns a document. `spec` is YAML in flow style, including its braces.
#[must_use]
pub fn document(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: muster.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

/// Returns a fleet with one tier, `basic`, these clusters (name and region), and no app.
#[must_use]
pub fn fleet<N: AsRef<str>, R: AsRef<str>>(
    name: &str,
    spec: &str,
    clusters: impl IntoIterator<Item = (N, R)>,
) -> Files {
    let place = "{location: {continent: EU, country: IE, latitude: 53.3, longitude: -6.2}}";
    let mut files = Files::from([
        ("fleet.yaml".to_owned(), document("Fleet", name, spec)),
        (
            "tiers.yaml".to_owned(),
            document("Tier", "basic", "{rpo: 1h, rto: 1h}"),
        ),
    ]);
    for (cluster, region) in clusters {
        let (cluster, region) = (cluster.as_ref(), region.as_ref());
        files.insert(
            format!("regions/{region}/region.yaml"),
            document("Region", region, place),
        );
        files.insert(
            format!("regions/{region}/{cluster}.yaml"),
            document("Cluster", cluster, "{}"),
        );
    }
    files
}

/// Returns the files in the form that [`crate::gitserver::GitRepo::publish`] takes.
#[must_use]
pub fn listed(files: &Files) -> Vec<(&str, &str)> {
    let files = files.iter();
    files
        .map(|(path, text)| (path.as_str(), text.as_str()))
        .collect()
}

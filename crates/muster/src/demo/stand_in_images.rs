//! Images for the pods of kind clusters. Each image of a fleet that can't be pulled is replaced by a small stand-in: it
//! has the same name, listens on the same ports, and contains the programs that pods call.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use muster_testkit::{
    image::{Entry, Image},
    kind::{KindClusters, docker},
    tools::Program,
};
use serde_json::Value;

use crate::status::terminal::names;

/// The timeout of a request to a registry, in seconds.
const ANSWER_WITHIN: &str = "30";

/// The properties that a stand-in image needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Needs {
    ports: BTreeSet<u64>,
    /// The names of programs that are started and keep running.
    servers: BTreeSet<String>,
    /// The names of programs that are called and end.
    helpers: BTreeSet<String>,
}

/// Makes the images of these objects' pods available. Asks the registries for each image's manifest, and replaces each
/// image that can't be pulled with a stand-in. Returns a message that says what was done.
pub(super) fn provide(clusters: &KindClusters, objects: &[Value]) -> anyhow::Result<String> {
    let needs = needs(objects);
    let missing = missing(&needs, |image| {
        // The nodes pull the images themselves, so nothing is downloaded here.
        let mut inspect = Command::new("timeout");
        inspect.args([ANSWER_WITHIN, "docker", "manifest", "inspect", image]);
        docker::run(&mut inspect).is_ok()
    });
    if missing.is_empty() {
        return Ok(summary(needs.len(), &missing));
    }
    let program = Program::Standin.build()?;
    let archive = clusters.directory().join("standins.tar");
    for (name, needs) in needs.iter().filter(|(name, _)| missing.contains(name)) {
        let words = |words: &mut dyn Iterator<Item = String>| words.collect::<Vec<_>>().join(" ");
        let links = needs.servers.union(&needs.helpers);
        Image {
            tags: vec![full_name(name)],
            files: std::iter::once(Entry::program("bin/standin", &program))
                .chain(links.map(|link| Entry::link(&format!("bin/{link}"), "standin")))
                .collect(),
            entrypoint: vec!["/bin/standin".to_owned()],
            environment: vec![
                "PATH=/bin".to_owned(),
                format!("STANDIN_SAYS=a stand-in for {name}"),
                format!(
                    "STANDIN_PORTS={}",
                    words(&mut needs.ports.iter().map(u64::to_string))
                ),
                format!(
                    "STANDIN_SERVERS={}",
                    words(&mut needs.servers.iter().cloned())
                ),
            ],
            ..Image::default()
        }
        .write(&archive)?;
        for cluster in clusters.all() {
            cluster.load(&archive)?;
        }
    }
    Ok(summary(needs.len(), &missing))
}

/// Returns the images that can't be pulled. `is_available` is called for all at the same time, because a network that
/// drops packets makes each call last until its timeout.
fn missing(
    needs: &BTreeMap<String, Needs>,
    is_available: impl Fn(&str) -> bool + Sync,
) -> Vec<&String> {
    let is_available = &is_available;
    std::thread::scope(|scope| {
        let tries: Vec<_> = needs
            .keys()
            .map(|image| (image, scope.spawn(move || is_available(image))))
            .collect();
        let failed = tries
            .into_iter()
            .filter_map(|(image, tried)| (!tried.join().unwrap_or(false)).then_some(image));
        failed.collect()
    })
}

/// Says which of the fleet's images are pulled and which are replaced.
fn summary(all: usize, missing: &[&String]) -> String {
    match all - missing.len() {
        _ if all == 0 => "the fleet runs no pods".to_owned(),
        0 => format!(
            "the fleet's {all} images can't be pulled here; small stand-ins with the same names replace them"
        ),
        pulled if pulled == all => format!("the nodes pull the fleet's {all} images"),
        pulled => format!(
            "the nodes pull {pulled} of the fleet's {all} images; small stand-ins with the same names replace those \
             that can't be pulled here: {}",
            names(missing.iter().map(|image| image.as_str()), missing.len())
        ),
    }
}

/// Returns an image's name as a node looks it up: with its registry, and with `:latest` if it has no tag.
fn full_name(name: &str) -> String {
    let registry = name.split_once('/').map(|(first, _)| first);
    let name = match registry {
        Some(first) if first.contains(['.', ':']) || first == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    };
    match name
        .rsplit('/')
        .next()
        .is_some_and(|last| last.contains(':'))
    {
        true => name,
        false => format!("{name}:latest"),
    }
}

/// Returns every image that pods of these objects run, with the properties that it needs.
fn needs(objects: &[Value]) -> BTreeMap<String, Needs> {
    let mut all: BTreeMap<String, Needs> = BTreeMap::new();
    for object in objects {
        let (stays, pod) = match object["kind"].as_str().unwrap_or_default() {
            "Pod" => (true, &object["spec"]),
            "Job" => (false, &object["spec"]["template"]["spec"]),
            "CronJob" => (
                false,
                &object["spec"]["jobTemplate"]["spec"]["template"]["spec"],
            ),
            "Deployment" | "StatefulSet" | "DaemonSet" => {
                (true, &object["spec"]["template"]["spec"])
            }
            _ => continue,
        };
        for (list, stays) in [("containers", stays), ("initContainers", false)] {
            for container in pod[list].as_array().into_iter().flatten() {
                let Some(image) = container["image"].as_str() else {
                    continue;
                };
                let needs = all.entry(image.to_owned()).or_default();
                let ports = container["ports"].as_array().into_iter().flatten();
                needs
                    .ports
                    .extend(ports.filter_map(|port| port["containerPort"].as_u64()));
                let programs = if stays {
                    &mut needs.servers
                } else {
                    &mut needs.helpers
                };
                programs.extend(program(&container["command"]));
                for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                    needs
                        .helpers
                        .extend(program(&container[probe]["exec"]["command"]));
                }
            }
        }
    }
    all
}

/// Returns the program of a command, if it is looked up in `PATH`.
fn program(command: &Value) -> Option<String> {
    let program = command[0].as_str()?;
    (!program.contains('/')).then(|| program.to_owned())
}

#[cfg(test)]
mod tests;

//! A cluster gets more manifests than its agent's memory can hold, with the chart's memory limit: the agent reports it,
//! stays alive, keeps its generation in force, and applies the next commit. The largest generation that fits is
//! applied, and a restarted agent continues with it.

use std::fmt::Write as _;

use anyhow::ensure;
use muster_e2e::{App, Levels, World};
use muster_testkit::repository::{Files, document};
use muster_testkit::wait::eventually;

/// The only cluster whose etcd is large enough.
const CLUSTER: &str = "eu-west-1";
const AGENT: [&str; 3] = ["pods", "-l", "app.kubernetes.io/name=muster-agent"];
/// The size of the text that a template prints in a loop, in bytes. Each ConfigMap contains it ten times.
const TEXT: usize = 90_000;
/// The number of ConfigMaps per template, because a template may render at most 16 MiB.
const MAPS: usize = 16;

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    let before = App::saying("before the bomb");
    world.serve("Before", &before).await?;
    // The agent has 512 MiB, and accepts a tenth of that in manifests: 51 MiB.
    world.commit("A bomb", &with_bulk("beside a bomb", &[32, 32]))?;
    world.says(CLUSTER, "its manifests have over 51 MiB", Levels::RECOVERY).await?;
    world.connected(CLUSTER, true, Levels::DRIFT).await?;
    world.serves_in("eu-north-1", &App::saying("beside a bomb"), Levels::COMMIT).await?;
    world.serves_in(CLUSTER, &before, Levels::DRIFT).await?;
    never_restarted(world)?;

    let fits = App::saying("what just fits");
    world.commit("What just fits", &with_bulk(&fits.says, &[32, 24]))?;
    world.serves(&fits, Levels::RECOVERY).await?;
    never_restarted(world)?;
    world.kubectl(CLUSTER, &["delete", "pod", "-l", "app.kubernetes.io/name=muster-agent"])?;
    let after = App::saying("after a restart");
    world.commit("After a restart", &with_bulk(&after.says, &[32, 24]))?;
    world.serves(&after, Levels::RECOVERY).await?;
    never_restarted(world)?;

    let gone = App::saying("without it");
    world.commit("Gone\n\nMuster-Prune: bulk-0\nMuster-Prune: bulk-1\n", &gone.fleet())?;
    // These are more deletions than the prune budget of an hour, so they need an approval although the commit asks for
    // them.
    for app in ["bulk-0", "bulk-1"] {
        eventually("the deletions to be approved", Levels::RECOVERY, async || {
            world.muster(&["app", "approve", app, "--yes"])?;
            Ok(())
        })
        .await?;
    }
    world.serves(&gone, Levels::RECOVERY).await?;
    eventually("the large ConfigMaps to be deleted", Levels::RECOVERY, async || {
        let maps = world.kubectl(CLUSTER, &["-n", "default", "get", "configmaps", "-o", "name"])?;
        ensure!(!maps.contains("bulk-"), "{maps}");
        Ok(())
    })
    .await
}

/// Checks that the agent's container has never restarted, as it would when it runs out of memory.
fn never_restarted(world: &World) -> anyhow::Result<()> {
    let pods = world.get(CLUSTER, &AGENT)?;
    let pods = pods["items"].as_array().into_iter().flatten();
    let containers = pods.flat_map(|pod| pod["status"]["containerStatuses"].as_array().into_iter().flatten());
    for container in containers {
        ensure!(container["restartCount"] == 0, "{container}");
    }
    Ok(())
}

/// Returns the fleet with additional apps, each with this many large ConfigMaps.
fn with_bulk(says: &str, apps: &[usize]) -> Files {
    let mut files = App::saying(says).fleet();
    for (app, maps) in apps.iter().enumerate() {
        let folder = format!("apps/bulk-{app}");
        let spec = format!("{{tier: basic, mode: active-active, namespace: default, placement: {{clusters: [{CLUSTER}]}}}}");
        files.insert(format!("{folder}/app.yaml"), document("App", &format!("bulk-{app}"), &spec));
        files.insert(format!("{folder}/values.yaml"), format!("text: \"{}\"\n", text()));
        for (part, first) in (0..*maps).step_by(MAPS).enumerate() {
            let template = format!(
                "{{% for n in range({first}, {}) %}}\n---\napiVersion: v1\nkind: ConfigMap\n\
                 metadata: {{name: \"bulk-{app}-{{{{ n }}}}\", namespace: default}}\n\
                 data: {{text: \"{{{{ n }}}}{{% for i in range(10) %}}{{{{ values.text }}}}{{% endfor %}}\"}}\n{{% endfor %}}\n",
                maps.min(&(first + MAPS))
            );
            files.insert(format!("{folder}/templates/part-{part}.yaml"), template);
        }
    }
    files
}

/// Returns a text that compresses badly.
fn text() -> String {
    let mut text = String::with_capacity(TEXT + 16);
    let mut state = 1_u64;
    while text.len() < TEXT {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let _ = write!(text, "{:x}", state >> 8);
    }
    text.truncate(TEXT);
    text
}

//! A cluster's agent is an app of the fleet repository. A new agent takes over once it has shown that it works. A
//! broken one is only reported.

use muster_e2e::{App, Levels, World};
use muster_testkit::repository::{Files, document};
use muster_testkit::wait::eventually;

const CLUSTER: &str = "us-east-1";
/// Allows the agent to manage objects in its own namespace.
const ITSELF: &str = "rbac.manageItself=true";
const PODS: [&str; 4] = ["pods", "-l", "app.kubernetes.io/name=muster-agent", "--field-selector=status.phase=Running"];

pub(crate) async fn run(world: &World) -> anyhow::Result<()> {
    let with_agent = |says: &str, tag: &str| -> anyhow::Result<Files> {
        let chart = ["template", "muster-agent", "CHARTS/muster-agent", "--set", ITSELF, "--set"];
        let tag = format!("image.tag={tag}");
        let mut files = App::saying(says).fleet();
        let placed = format!("{{tier: basic, mode: active-active, namespace: muster-system, placement: {{clusters: [{CLUSTER}]}}}}");
        files.insert("apps/muster-agent/app.yaml".to_owned(), document("App", "muster-agent", &placed));
        let rendered = world.helm(CLUSTER, &[chart.as_slice(), &[&tag]].concat())?;
        files.insert("apps/muster-agent/manifests/agent.yaml".to_owned(), rendered);
        Ok(files)
    };
    // By default the fleet repository can't change the agent's namespace.
    world.commit("Not allowed", &with_agent("without its agent", "next")?)?;
    world.serves_in(CLUSTER, &App::saying("without its agent"), Levels::COMMIT).await?;
    eventually("the status to say what is denied", Levels::RECOVERY, async || {
        let status = world.status_of(CLUSTER)?.to_string();
        anyhow::ensure!(status.contains("not allowed to touch the namespace muster-system"), "{status}");
        Ok(())
    })
    .await?;

    world.install_agent(CLUSTER, &[ITSELF])?;
    world.commit("The agent is an app", &with_agent("with its agent", "next")?)?;
    world.serves(&App::saying("with its agent"), Levels::RECOVERY).await?;
    runs(world, "next").await?;

    world.commit("A broken agent", &with_agent("beside a broken agent", "broken")?)?;
    eventually("the status to say what is wrong", Levels::RECOVERY, async || {
        let status = world.status_of(CLUSTER)?.to_string();
        anyhow::ensure!(["CrashLoopBackOff", "exit code 1"].iter().any(|why| status.contains(why)), "{status}");
        Ok(())
    })
    .await?;
    world.serves_in(CLUSTER, &App::saying("beside a broken agent"), Levels::COMMIT).await?;
    // The previous agent still runs and applies new commits.
    let later = with_agent("and still at work", "broken")?;
    world.commit("More work", &later)?;
    world.serves_in(CLUSTER, &App::saying("and still at work"), Levels::COMMIT).await?;

    world.commit("The agent's fix", &with_agent("with its agent again", "next")?)?;
    world.serves(&App::saying("with its agent again"), Levels::RECOVERY).await?;
    runs(world, "next").await?;

    // When the app leaves Git, the agent stays, because an agent never prunes itself.
    world.commit("Back to Helm", &App::saying("under Helm").fleet())?;
    world.serves_in(CLUSTER, &App::saying("under Helm"), Levels::RECOVERY).await?;
    world.install_agent(CLUSTER, &[])?;
    world.serves(&App::saying("under Helm"), Levels::RECOVERY).await
}

async fn runs(world: &World, tag: &str) -> anyhow::Result<()> {
    eventually(&format!("only an agent with the image tag {tag} to run"), Levels::RECOVERY, async || {
        let pods = world.get(CLUSTER, &PODS)?;
        let images = pods["items"].as_array().into_iter().flatten();
        let images: Vec<&str> = images.filter_map(|pod| pod["spec"]["containers"][0]["image"].as_str()).collect();
        anyhow::ensure!(images.len() == 1 && images[0].ends_with(&format!(":{tag}")), "{images:?}");
        Ok(())
    })
    .await
}

//! Builds the programs of the local clusters into the cache, so that no test has to wait for it.

use muster_testkit::tools::Component;

fn main() -> anyhow::Result<()> {
    for component in [
        Component::Etcd,
        Component::ApiServer,
        Component::ControllerManager,
        Component::Scheduler,
        Component::Kwok,
    ] {
        println!("{}", component.build()?.display());
    }
    Ok(())
}

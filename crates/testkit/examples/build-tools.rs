//! Builds the programs of the local clusters into the cache, so that no test has to wait for a build.

use muster_testkit::local::Component;

fn main() -> anyhow::Result<()> {
    for component in Component::ALL {
        println!("{}", component.program().build()?.display());
    }
    Ok(())
}

//! Makes sure that Docker has the image of kind's nodes; pulls or builds it if it is missing.

use muster_testkit::kind::NodeImage;

fn main() -> anyhow::Result<()> {
    println!("{}", NodeImage::ready()?.name);
    Ok(())
}

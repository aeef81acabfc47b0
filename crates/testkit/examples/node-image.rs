//! Makes sure that the image of kind's nodes is here: pulled, or built.

use muster_testkit::kind::NodeImage;

fn main() -> anyhow::Result<()> {
    println!("{}", NodeImage::ready()?.name);
    Ok(())
}

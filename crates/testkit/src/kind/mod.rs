//! kind clusters, with real nodes and pods in Docker.

mod cluster;
pub mod docker;
mod muster_image;
mod node_image;

pub use cluster::{KindCluster, KindClusters, KindOptions};
pub use muster_image::{MUSTER_IMAGE, build_static, muster_image};
pub use node_image::NodeImage;

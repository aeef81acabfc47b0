//! kind clusters: real nodes and pods, in Docker.

mod cluster;
pub mod docker;
mod node_image;

pub use cluster::{KindCluster, KindClusters, KindOptions};
pub use node_image::NodeImage;

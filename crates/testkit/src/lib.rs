//! Real components for tests, the demo and the benchmarks: child processes that end with their parent, Kubernetes
//! control planes on loopback ports, and manifests of other projects.

mod credentials;
pub mod documents;
pub mod faults;
pub mod fleet;
pub mod gitserver;
mod guard;
pub mod image;
pub mod kind;
pub mod local;
pub mod ports;
pub mod process;
pub mod repository;
pub mod scratch;
pub mod tools;
pub mod upstream;
pub mod wait;

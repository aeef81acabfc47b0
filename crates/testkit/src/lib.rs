//! Real parts for tests, the demo and the benchmarks: processes that never outlive us, Kubernetes
//! control planes on loopback ports, upstream manifests.

mod credentials;
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

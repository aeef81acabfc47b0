//! The memory of Muster's programs: one allocator for whatever C library they are linked with. It stands
//! here because every program that runs for long links this crate.
//!
//! glibc keeps a heap for each thread and gives little of them back; musl's allocator is slow with
//! threads. How jemalloc is set stands in `.cargo/config.toml`: few arenas, and pages that are not used go
//! back within a second.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

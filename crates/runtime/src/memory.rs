//! The global allocator of Muster's programs: jemalloc, whichever C library they are linked with. It is defined here
//! because every long-running program links this crate.
//!
//! glibc has a heap for each thread and returns little of it to the system, and musl's allocator is slow with threads.
//! jemalloc is configured in `.cargo/config.toml`: few arenas, and unused pages are returned within a second.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

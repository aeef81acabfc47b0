//! The whole of Muster as processes, on real control planes and a real repository.

mod approve;
mod killed;
mod upstream;

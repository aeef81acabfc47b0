//! The whole of Muster as processes, on real control planes and a real repository.

mod account;
mod approve;
mod ca;
mod clocks;
mod container;
mod damaged_records;
mod docs;
mod health;
mod hostile;
mod joining;
mod killed;
mod large;
mod metrics;
mod people;
mod reading;
mod rendering;
mod resting;
mod rights;
mod rolling;
mod strangers;
mod upstream;

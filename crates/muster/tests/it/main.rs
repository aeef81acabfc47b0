//! Integration tests of the `muster` program. Most of them run hub and agents as processes, on real control planes
//! and with a real Git repository.

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
mod moves;
mod output;
mod people;
mod reading;
mod rendering;
mod resting;
mod rights;
mod rolling;
mod strangers;
mod upstream;
mod writers;

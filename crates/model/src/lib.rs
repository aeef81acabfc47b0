//! The kinds of a fleet repository: typed names, documents and values, and the checks that report what
//! is wrong with them and where. The crate does no I/O: it gets the files as a [`tree::Tree`].

pub mod agent_records;
pub mod bundle;
mod decode;
pub mod expression;
pub mod fleet_record;
pub mod health;
pub mod ids;
pub mod kinds;
pub mod load;
pub mod overseer;
pub mod policy;
pub mod problem;
pub mod scopes;
pub mod tree;
pub mod values;
pub mod writer_rule;
pub mod yaml;

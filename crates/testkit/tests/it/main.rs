//! Tests that the test kit's components do what the tests of the other crates rely on.

mod kind;
mod local;
mod upstream;

//! Runs every target on every input of its corpus.

use std::{fs, path::Path};

use muster_fuzz::TARGETS;

#[test]
fn no_target_panics_on_a_stored_input() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora");
    for (name, target) in TARGETS {
        let folder = corpora.join(name);
        let mut inputs = 0;
        for entry in
            fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            eprintln!("{}", path.display());
            target(&bytes);
            inputs += 1;
        }
        assert!(inputs > 0, "{name} has no corpus");
    }
}

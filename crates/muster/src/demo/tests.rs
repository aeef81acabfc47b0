use std::fs;

use super::*;

fn demo(fleet: Option<&str>, dir: &Path) -> DemoArgs {
    DemoArgs {
        fleet: fleet.map(PathBuf::from),
        dir: Some(dir.to_owned()),
        clusters: Clusters::Local,
        nodes: 0,
    }
}

#[test]
fn the_repository_of_an_earlier_run_decides() -> anyhow::Result<()> {
    let (dir, scratch) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let of = |fleet: Option<&str>, to: &str| {
        let args = demo(fleet, dir.path());
        source(&args, &scratch.path().join(to))
    };
    let repo = GitRepo::at(dir.path())?;
    // Nothing has been pushed yet.
    assert!(of(None, "sample")?.join("apps/storefront").is_dir());
    assert_eq!(of(Some("/srv/fleet"), "named")?, Path::new("/srv/fleet"));

    repo.publish("mine", &[("fleet.yaml", "mine")])?;
    repo.write(&[(b"fleet.yaml", b"not pushed")])?;
    let kept = of(None, "kept")?;
    assert_eq!(fs::read_to_string(kept.join("fleet.yaml"))?, "mine");
    let Err(refused) = of(Some("/srv/fleet"), "refused") else {
        bail!("--fleet was accepted");
    };
    assert!(refused.is::<WrongUse>());
    let said = refused.to_string();
    assert!(said.contains("use another --dir for /srv/fleet"), "{said}");
    Ok(())
}

#[test]
fn only_the_sample_is_called_one() {
    let subject = |fleet| subject(&demo(fleet, Path::new("/kept")));
    assert_eq!(subject(None), "The sample fleet");
    assert_eq!(subject(Some("/srv/fleet")), "A copy of /srv/fleet");
}

#[test]
fn the_suggested_change_is_of_a_file_that_exists() -> anyhow::Result<()> {
    let work = tempfile::tempdir()?;
    let commands = || change(work.path()).replace(&work.path().display().to_string(), "WORK");
    insta::assert_snapshot!(commands(), @r"
    cd WORK
    # Edit a file, then:
    git commit -qam 'A change' && git push -q
    muster status --wait
    ");
    SAMPLE.extract(work.path())?;
    insta::assert_snapshot!(commands(), @r"
    cd WORK
    sed -i 's/replicas: .*/replicas: 4/' apps/storefront/values.yaml && git commit -qam 'More storefront' && git push -q
    muster status --wait
    ");
    Ok(())
}

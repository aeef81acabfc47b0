use super::*;

#[test]
fn the_announcement_names_programs_and_time() {
    let all = [
        Program::Etcd,
        Program::ApiServer,
        Program::ControllerManager,
        Program::Scheduler,
        Program::Kwok,
    ];
    let text = announcement(&all, 2.0).unwrap();
    for program in all {
        assert!(text.contains(program.name()), "{text}");
    }
    assert!(text.contains("this may take "), "{text}");
}

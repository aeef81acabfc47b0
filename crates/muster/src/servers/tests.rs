use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    agent: AgentArgs,
}

fn reach(arguments: &[&str]) -> NamespaceAccess {
    let line = std::iter::once(&"muster").chain(arguments);
    Line::parse_from(line).agent.reach()
}

#[test]
fn what_an_agent_leaves_alone() {
    let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let all_but = |names| NamespaceAccess::AllBut(set(names));
    assert_eq!(reach(&[]), all_but(&["kube-system", "muster-system"]));
    assert_eq!(
        reach(&["--namespace=other", "--deny-namespaces=a, b"]),
        all_but(&["a", "b", "other"])
    );
    assert_eq!(reach(&["--manage-itself"]), all_but(&["kube-system"]));
    assert_eq!(
        reach(&["--manage-itself", "--deny-namespaces="]),
        all_but(&[])
    );
    assert_eq!(
        reach(&["--namespaces=a,muster-system"]),
        NamespaceAccess::Only(set(&["a", "muster-system"]))
    );
}

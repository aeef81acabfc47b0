use super::*;

#[test]
fn the_error_names_the_limit_and_the_memory() {
    let memory = 512 * MIB;
    let check = |objects, bytes| {
        let room = MemoryBudget {
            memory,
            objects,
            bytes,
        };
        room.check().map_err(|e| e.to_string())
    };
    assert_eq!(check(43_690, 51 * MIB), Ok(()));
    insta::assert_snapshot!(check(43_691, 0).unwrap_err(), @"its manifests have over 43690 objects, which is the most that this agent accepts with 512 MiB of memory; give the agent more memory (`resources` in its chart), or the cluster fewer objects");
    insta::assert_snapshot!(check(1, 52 * MIB).unwrap_err(), @"its manifests have over 51 MiB, which is the most that this agent accepts with 512 MiB of memory; give the agent more memory (`resources` in its chart), or the cluster fewer objects");
}

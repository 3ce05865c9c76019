//! What an application compiles that embeds a node, and what it does not.

use std::process::Command;

#[test]
fn the_library_brings_neither_grpc_nor_http() {
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--package",
            "steadfast",
            "--edges",
            "normal",
        ])
        .args(["--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let text = String::from_utf8_lossy(&tree.stdout).into_owned();
    assert!(
        tree.status.success(),
        "{}",
        String::from_utf8_lossy(&tree.stderr)
    );
    let names = || text.lines().filter_map(|line| line.split(' ').next());
    assert!(
        names().any(|name| name == "openraft"),
        "it is the tree of the library"
    );
    for unwanted in ["tonic", "hyper", "h2", "http", "axum", "tower"] {
        assert!(
            !names().any(|name| name == unwanted),
            "{unwanted} is in:\n{text}"
        );
    }
}

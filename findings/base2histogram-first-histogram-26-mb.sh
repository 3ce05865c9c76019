#!/usr/bin/env bash
# base2histogram 0.2.3: the first histogram of a process allocates 26.8 MB, and keeps it.
#
# A guess from its documentation ("252 buckets", "2,016 bytes") is off by four orders of magnitude.
# The first `Histogram::new()` builds tables for every bucket width, for all histograms to come, and
# they stay when the last histogram is dropped. The second histogram costs 2,144 bytes. openraft
# 0.10.0-alpha.37 makes one in each `Raft::new`, so a process pays this with its first node: set
# limits of memory, and judge leaks, with it in mind.
#
# Seen: first 26807240 second 2144 kept 26805096
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "probe"
version = "0.0.0"
edition = "2024"

[dependencies]
base2histogram = "=0.2.3"
cap = "=0.1.2"
TOML
cat >"$dir/src/main.rs" <<'RUST'
use std::alloc::System;

use base2histogram::Histogram;
use cap::Cap;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

fn main() {
    let before = ALLOCATOR.allocated();
    let first = Histogram::<()>::new();
    let with_one = ALLOCATOR.allocated();
    let second = Histogram::<()>::new();
    let with_two = ALLOCATOR.allocated();
    drop((first, second));
    let kept = ALLOCATOR.allocated() - before;
    let (first, second) = (with_one - before, with_two - with_one);
    println!("first {first} second {second} kept {kept}");
    assert!((25_000_000..30_000_000).contains(&first), "the first one");
    assert!(second < 10_000, "the second one");
    assert!(kept > 25_000_000, "what stays");
}
RUST
cargo run --quiet --manifest-path "$dir/Cargo.toml"

//! Rebuilds the crate when a migration changes: `sqlx::migrate!` embeds their text. Tells it for which target
//! it is built.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
    let target = std::env::var("TARGET").unwrap_or_default();
    println!("cargo:rustc-env=TOLLGATE_TARGET={target}");
}

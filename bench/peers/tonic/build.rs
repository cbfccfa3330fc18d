//! Generates the code of the contract. protox compiles it, so that no protoc needs to be installed.

const FOLDER: &str = "../../../proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={FOLDER}/avap.proto");
    tonic_prost_build::configure()
        .build_client(false)
        .bytes(".avap.CommandResponse.code")
        .compile_fds(protox::compile(["avap.proto"], [FOLDER])?)?;
    Ok(())
}

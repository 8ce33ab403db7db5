//! The command line: wiring only. What the commands do is in [`gatewaytrust::cli`].

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let arguments = gatewaytrust::cli::Arguments::parse();
    gatewaytrust::cli::main(arguments)
}

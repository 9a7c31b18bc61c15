//! A PKCS#11 token of a test's own, in SoftHSM.
//!
//! A test that needs one begins with `let Some(token) = softhsm::or_skip() else { return };`. Without SoftHSM on the
//! machine it is skipped, which is said on stderr; where `CI=true` or `ALIPAYPLUS_CANCEL_TESTS_REQUIRE_SOFTHSM=1` is set
//! it fails instead.

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// Where Debian and others put the module.
const MODULES: [&str; 5] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

/// The PIN of every token here, marked so that a search finds it wherever it leaked to.
pub const PIN: &str = "7401936258";

/// A token and its configuration, in a folder that ends with it.
pub struct Token {
    dir: TempDir,
    /// Its label.
    pub label: String,
}

/// The module, if it is there.
pub fn module() -> Option<&'static Path> {
    MODULES.iter().map(Path::new).find(|path| path.is_file())
}

/// An empty token, if there is SoftHSM; else says on stderr that this test is skipped.
///
/// # Panics
///
/// Where it is required and not there.
pub fn or_skip() -> Option<Token> {
    if module().is_some() {
        return Some(Token::new("wallet token"));
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let told = format!(
        "\nSKIPPED {test}: no SoftHSM (softhsm2-util, libsofthsm2.so); tests/run installs it on Debian as root\n"
    );
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|set| set == value);
    let required = is("CI", "true") || is("ALIPAYPLUS_CANCEL_TESTS_REQUIRE_SOFTHSM", "1");
    assert!(!required, "{told}");
    // not eprintln!, which the test runner keeps to itself when a test passes
    std::io::stderr().write_all(told.as_bytes()).expect("stderr");
    None
}

impl Token {
    fn new(label: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("apc-hsm-").tempdir().expect("a folder");
        let tokens = dir.path().join("tokens");
        fs::create_dir(&tokens).expect("a folder");
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        fs::write(dir.path().join("softhsm2.conf"), text).expect("a file");
        fs::write(dir.path().join("pin"), format!("{PIN}\n")).expect("a file");
        let token = Self { dir, label: label.to_owned() };
        token.util(&[
            "--init-token",
            "--free",
            "--label",
            label,
            "--so-pin",
            "5550001",
            "--pin",
            PIN,
        ]);
        token
    }

    /// `SOFTHSM2_CONF`: a process needs it to see this token.
    pub fn env(&self) -> (String, String) {
        let file = self.dir.path().join("softhsm2.conf");
        ("SOFTHSM2_CONF".to_owned(), file.to_str().expect("a plain path").to_owned())
    }

    /// A file with the PIN.
    pub fn pin_file(&self) -> PathBuf {
        self.dir.path().join("pin")
    }

    /// Puts a pair into it, private and public, from PKCS#8 in PEM.
    pub fn import(&self, label: &str, id: &str, pkcs8_pem: &str) {
        let file = self.dir.path().join("import.pem");
        fs::write(&file, pkcs8_pem).expect("a file");
        let path = file.to_str().expect("a plain path");
        self.util(&[
            "--import",
            path,
            "--token",
            &self.label,
            "--label",
            label,
            "--id",
            id,
            "--pin",
            PIN,
        ]);
        fs::remove_file(&file).expect("the file");
    }

    fn util(&self, arguments: &[&str]) {
        let (name, value) = self.env();
        let output = Command::new("softhsm2-util").args(arguments).env(name, value).output();
        let output = output.expect("softhsm2-util starts");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "softhsm2-util: {}", String::from_utf8_lossy(&said));
    }

    /// `pkcs11 = { … }` of a key in it.
    pub fn setting(&self, key: &str) -> String {
        format!(
            r#"pkcs11 = {{ module = "{}", token_label = "{}", {key}, pin_file = "{}" }}"#,
            module().expect("SoftHSM").display(),
            self.label,
            self.pin_file().display(),
        )
    }
}

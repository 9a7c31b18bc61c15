//! Keys where they are: in files, in tokens, in a running service.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use http::Uri;
use zeroize::Zeroizing;

use super::Usage;
use crate::{
    app,
    bridge::{
        keys::{PrivateKey, PublicKey},
        signer::Signer,
    },
    cli::{
        exchange::{Caller, Verdict},
        start_error,
    },
    config::IdentityKey,
};

/// A file as the settings name it: from their folder, where it is below.
pub(super) fn named(settings: &Path, file: &Path) -> Result<String> {
    let whole = |path: &Path| {
        fs::canonicalize(path).with_context(|| Usage(format!("{} cannot be found", path.display())))
    };
    let (settings, file) = (whole(settings)?, whole(file)?);
    let folder = settings.parent().unwrap_or(Path::new("/"));
    let name = file.strip_prefix(folder).unwrap_or(&file);
    Ok(name.to_str().context("the file's name is not UTF-8")?.to_owned())
}

fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let wrong = || Usage(format!("key file {} cannot be read", file.display()));
    Ok(Zeroizing::new(fs::read(file).with_context(wrong)?))
}

pub(super) fn private(file: &Path) -> Result<PrivateKey> {
    let wrong = || Usage(format!("key file {} is no use", file.display()));
    PrivateKey::parse(&*read(file)?).with_context(wrong)
}

/// One of our keys, from its file or its token.
pub(super) fn signer(keys: &[IdentityKey], key: &IdentityKey) -> Result<Arc<dyn Signer>> {
    let place = keys.iter().position(|known| known.version == key.version);
    app::signer(place.unwrap_or_default(), key).map_err(start_error)
}

pub(super) fn place_of(key: &IdentityKey) -> String {
    let in_file = key.file.as_ref().map(|file| file.display().to_string());
    in_file.unwrap_or_else(|| "the key in its token".to_owned())
}

pub(super) fn public(file: &Path) -> Result<PublicKey> {
    let wrong = || Usage(format!("key file {} is no use", file.display()));
    PublicKey::parse(&*read(file)?).with_context(wrong)
}

/// Which of our keys a running service signs with. Whoever names a client gets a signed answer, also one that has proven
/// nothing: the request is signed with a key of no worth, and refused.
pub(super) fn signed_by(
    url: &Uri,
    client: &str,
    key: PublicKey,
    ca_file: Option<PathBuf>,
) -> Result<String> {
    let target = format!("{}/v1/payments/cancelPayment", url.to_string().trim_end_matches('/'));
    let target: Uri = target.parse().with_context(|| Usage(format!("--url {url}")))?;
    let caller = Caller {
        client_id: client.to_owned(),
        key: PrivateKey::generate(2_048)?,
        key_version: "none".to_owned(),
        peer_key: Some(key),
        ca_file,
        timeout: Duration::from_secs(8),
    };
    let signed = caller.sign(&target, "{}".to_owned())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answered = runtime.context("cannot start the runtime")?.block_on(caller.send(&signed))?;
    let Some(version) = answered.key_version() else {
        bail!("{url} does not sign its answers to {client}: is it this service?")
    };
    match answered.signature {
        Verdict::Verified | Verdict::Wrong => {}
        Verdict::Missing | Verdict::Unchecked => bail!("{url} does not sign its answers"),
    }
    if answered.signature == Verdict::Wrong {
        return Ok(format!("{version} (a key that does not verify with the active one)"));
    }
    Ok(version)
}

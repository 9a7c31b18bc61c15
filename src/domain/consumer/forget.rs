//! Forget: a consumer and its place are gone.

use super::{Consumer, Follower, Refusal};

/// The request.
#[derive(Clone, Debug, Default)]
pub struct Forget {
    /// Who calls.
    pub follower: Follower,
    /// The identity that the caller says the name belongs to: whoever forgets another's consumer has looked first.
    pub identity: Option<Box<str>>,
    /// Whether the settings demand it.
    pub required: bool,
}

/// Decides, in the order of precedence.
pub fn decide(consumer: Option<&Consumer>, command: &Forget) -> Result<(), Refusal> {
    let consumer = consumer.ok_or(Refusal::Unknown)?;
    if command.identity.is_none() || command.identity != consumer.owner {
        command.follower.owns(consumer)?;
    }
    if command.required {
        return Err(Refusal::Required);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::fixtures::{consumer, owner, stranger},
        *,
    };

    #[test]
    fn the_first_thing_wrong_is_the_answer() {
        let mut command = Forget { follower: stranger(), identity: None, required: true };
        assert_eq!(decide(None, &command), Err(Refusal::Unknown));
        assert_eq!(decide(Some(&consumer()), &command), Err(Refusal::NotYours));
        command.follower = owner();
        assert_eq!(decide(Some(&consumer()), &command), Err(Refusal::Required));
        command.required = false;
        assert_eq!(decide(Some(&consumer()), &command), Ok(()));
    }

    #[test]
    fn whoever_names_the_owner_may_forget_anothers() {
        let named = |identity: &str| Forget {
            follower: stranger(),
            identity: Some(identity.into()),
            required: false,
        };
        assert_eq!(decide(Some(&consumer()), &named("executor.wallet")), Ok(()));
        assert_eq!(decide(Some(&consumer()), &named("other.wallet")), Err(Refusal::NotYours));
    }
}

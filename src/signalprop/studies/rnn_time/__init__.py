"""The study `rnn-time`: a recurrent net is a deep net in time."""

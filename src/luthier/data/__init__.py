"""From files and hub ids to rows of tokens, every row accounted for."""

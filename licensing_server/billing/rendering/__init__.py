"""An invoice as people and other systems read it: pure functions from its document to bytes (BILLING §5, §7)."""

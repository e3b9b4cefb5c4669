"""The audit log: who decided what, in a chain that shows what was changed or taken out."""

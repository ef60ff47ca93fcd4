package gvisor

// Find is the runsc that a Runtime would take without Options.Runsc. It says nothing of whether
// that works: New tries it.
func Find() (string, error) { return find("") }

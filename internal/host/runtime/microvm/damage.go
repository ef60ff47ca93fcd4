package microvm

// What still works when part of a capture is damaged. ID stands for the sandbox's.
const (
	memoryHint = "the sandbox's disk is untouched: `roost resume --cold ID` boots from it"
	diskHint   = "the sandbox cannot start from this capture: use a copy of the file, an older snapshot or a fork made before"
)

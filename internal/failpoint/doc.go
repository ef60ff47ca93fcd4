// Package failpoint names the places where a test makes Roost fail or die. Built in only
// with the tag failpoints; elsewhere Hit is an empty function. A test arms points through
// ROOST_FAILPOINTS, a comma-separated list of NAME=error, NAME=error@FILE (while FILE exists)
// or NAME=kill (SIGKILL to itself). Names read PACKAGE.OPERATION.STEP.
package failpoint

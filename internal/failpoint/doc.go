// Package failpoint names the places where a test makes Roost fail or die. Built in only
// with the tag failpoints; elsewhere Hit is an empty function. A test arms points through
// ROOST_FAILPOINTS, a comma-separated list of NAME=error, NAME=error@FILE (while FILE exists)
// or NAME=kill (SIGKILL to itself). Names read PACKAGE.OPERATION.STEP. A package declares its
// names, so that the program itself lists them (`roost failpoints`) and the tests can tell that
// none was forgotten.
package failpoint

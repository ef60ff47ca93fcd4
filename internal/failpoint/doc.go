// Package failpoint names the places where a test makes Roost fail or die. Built in only
// with the tag failpoints; elsewhere Hit is an empty function.
//
// A package declares its names, which read PACKAGE.OPERATION.STEP, so that the program itself
// lists them (`roost failpoints`) and the tests can tell that none was forgotten.
//
// A test arms points through ROOST_FAILPOINTS, a comma-separated list of
//
//	NAME=error         the step fails
//	NAME=error@FILE    it fails while FILE exists
//	NAME=kill          SIGKILL to the process itself
//	@DIR               each point is armed while DIR/NAME exists, which holds "error", "kill", or
//	                   "once": fail once and disarm; "hold": wait, with DIR/NAME.held to show
//	                   it, until the file is removed or holds another word
package failpoint

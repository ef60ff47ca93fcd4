//go:build !failpoints

package failpoint

// Enabled says that this binary was built with failpoints.
const Enabled = false

// Hit does nothing in a binary built without the failpoints tag.
func Hit(string) error { return nil }

// Declare does nothing in a binary built without the failpoints tag.
func Declare(...string) struct{} { return struct{}{} }

// Names are none in a binary built without the failpoints tag.
func Names() []string { return nil }

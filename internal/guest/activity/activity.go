// Package activity remembers when the sandbox last did something for its user. The host pauses
// a sandbox that has been idle, so only user work counts: requests, starts, output.
package activity

import (
	"sync/atomic"
	"time"
)

// Clock is the time of the last activity. Make it with New.
type Clock struct {
	start time.Time // time is monotonic from here: a clock step must not look like idleness
	last  atomic.Int64
}

// New makes a clock that says "now".
func New() *Clock { return &Clock{start: time.Now()} }

// Touch records activity.
func (c *Clock) Touch() { c.last.Store(int64(time.Since(c.start))) }

// Idle is how long ago the last activity was.
func (c *Clock) Idle() time.Duration { return time.Since(c.start) - time.Duration(c.last.Load()) }

package process

import (
	"strconv"
	"syscall"
)

// describe words a wait status as Go's os package does, which is what envd's clients know.
func describe(status syscall.WaitStatus) End {
	if status.Exited() {
		return End{Code: status.ExitStatus(), Exited: true, Status: "exit status " + strconv.Itoa(status.ExitStatus())}
	}
	text := "signal: " + status.Signal().String()
	if status.CoreDump() {
		text += " (core dumped)"
	}
	return End{Code: -1, Status: text}
}

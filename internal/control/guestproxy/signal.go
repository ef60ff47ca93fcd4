package guestproxy

import (
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/api/gen/process"
	"github.com/roosthq/roost/internal/fault"
)

// ParseSignal reads a name such as "SIGINT" that the guest knows.
func ParseSignal(name string) (process.Signal, error) {
	n, known := process.Signal_value["SIGNAL_"+name]
	if !known || n == 0 {
		return 0, fault.New(fault.Invalid, "", "",
			fmt.Sprintf("signal is %.32q: must be SIGINT, SIGTERM, SIGKILL, SIGHUP or SIGQUIT", name))
	}
	return process.Signal(n), nil
}

// exitOf translates an end event. A signal's death comes as code -1 with the signal in
// words: "signal: killed", or with "(core dumped)" behind.
func exitOf(end *process.ProcessEvent_EndEvent) *Exit {
	exit := &Exit{Code: int(end.GetExitCode()), Error: end.GetError()}
	for _, text := range []string{end.GetError(), end.GetStatus()} {
		if sig := signalIn(text); sig != 0 && exit.Code < 0 {
			return &Exit{Code: 128 + int(sig), Signal: unix.SignalName(sig)}
		}
	}
	if strings.HasPrefix(exit.Error, "exit status ") {
		exit.Error = "" // says no more than the code
	}
	return exit
}

// signalIn finds the signal that Go's words for a wait status name.
func signalIn(text string) syscall.Signal {
	name, found := strings.CutPrefix(text, "signal: ")
	if !found {
		return 0
	}
	name = strings.TrimSuffix(name, " (core dumped)")
	for sig := syscall.Signal(1); sig < 65; sig++ {
		if sig.String() == name || unix.SignalName(sig) == name {
			return sig
		}
	}
	return 0
}

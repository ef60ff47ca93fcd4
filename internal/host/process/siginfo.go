package process

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// childInfo is the part of siginfo_t that waitid fills, on 64-bit Linux.
type childInfo struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
}

const cldExited = 1

func fromSiginfo(info *unix.Siginfo) Status {
	c := (*childInfo)(unsafe.Pointer(info))
	if c.code == cldExited {
		return Status{Known: true, Code: int(c.status)}
	}
	return Status{Known: true, Code: -1, Signal: unix.Signal(c.status)}
}

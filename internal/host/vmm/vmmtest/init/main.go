//go:build linux

// The test guest's init: loads virtio, brings up eth0 and obeys one command a line over TCP.
// It is the only program in its guest.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	debug.SetGCPercent(400)
	fmt.Fprintln(console, "init failed:", run())
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

var console = os.Stderr

// run returns when the guest cannot go on.
func run() error {
	if err := setUp(); err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":7000")
	if err != nil {
		return err
	}
	fmt.Fprintln(console, "vmmtest init ready")
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go serve(conn)
	}
}

func serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewScanner(conn)
	for in.Scan() {
		word := strings.Fields(in.Text())
		if len(word) == 0 {
			continue
		}
		reply, err := obey(word[0], word[1:])
		if err != nil {
			reply = "error " + err.Error()
		}
		if _, err := fmt.Fprintln(conn, reply); err != nil {
			return
		}
	}
}

// Command roost-guest runs inside a sandbox: as /init of a VM, or with --no-init as an ordinary
// process where something else is init. See package guest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/roosthq/roost/internal/guest/boot"
	"github.com/roosthq/roost/internal/guest/reaper"
	"github.com/roosthq/roost/internal/guest/restore"
	"github.com/roosthq/roost/internal/guest/server"
)

// version is set by the build: -ldflags "-X main.version=…".
var version = "dev"

func main() {
	// The kernel hands init whatever it does not know of its command line, so PID 1 of a VM
	// parses no flags.
	if os.Getpid() == 1 && !slices.Contains(os.Args, "--no-init") && !slices.Contains(os.Args, "--version") {
		boot.Die(runInit())
	}
	if err := runPlain(); err != nil {
		fmt.Fprintln(os.Stderr, "roost-guest:", err)
		os.Exit(1)
	}
}

// runInit returns only with the reason why the VM cannot go on.
func runInit() error {
	c, err := boot.Prepare()
	if err != nil {
		return err
	}
	ctx := context.Background()
	config := server.Config{
		ControlToken: c.ControlToken, DefaultUser: c.DefaultUser, Envs: c.Envs, Version: version,
		Root: "/", CgroupRoot: boot.CgroupRoot, Device: c.RootDevice,
		System: restore.Kernel{}, Reaper: reaper.NewInit(ctx),
	}
	if err := server.Warm(ctx, config); err != nil {
		boot.Say("%v (going on without)", err)
	}
	guest, err := server.New(ctx, config)
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "0.0.0.0:"+server.Port)
	if err != nil {
		return err
	}
	boot.Say("ready")
	return guest.Serve(listener)
}

type options struct {
	listen, controlToken, cgroupRoot, root, defaultUser string
	noInit, version                                     bool
}

func parse() options {
	var o options
	flag.StringVar(&o.listen, "listen", "0.0.0.0:"+server.Port, "address to serve on")
	flag.StringVar(&o.controlToken, "control-token", os.Getenv("ROOST_CONTROL_TOKEN"), "token that Control requests carry")
	flag.BoolVar(&o.noInit, "no-init", false, "run where something else is init: mount nothing, set no clock or host name")
	flag.StringVar(&o.cgroupRoot, "cgroup-root", "", "cgroup v2 directory below which user processes live")
	flag.StringVar(&o.root, "root", "", "folder whose etc and run are the sandbox's (inside a sandbox: /)")
	flag.StringVar(&o.defaultUser, "default-user", "user", "who acts when a request names nobody")
	flag.BoolVar(&o.version, "version", false, "print the version")
	flag.Parse()
	return o
}

func (o options) validate() error {
	switch {
	case !o.noInit:
		return errors.New("this is the init of a VM; elsewhere start it with --no-init")
	case o.controlToken == "":
		return errors.New("--control-token is missing")
	case o.cgroupRoot == "":
		return errors.New("--cgroup-root is missing")
	case o.root == "":
		return errors.New("--root is missing: Restore writes host name and machine id below it")
	}
	return nil
}

func runPlain() error {
	o := parse()
	if o.version {
		fmt.Println(version)
		return nil
	}
	if err := o.validate(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	guest, err := server.New(ctx, server.Config{
		ControlToken: o.controlToken, DefaultUser: o.defaultUser, Version: version,
		Root: o.root, CgroupRoot: o.cgroupRoot, System: restore.Given{}, Reaper: plainReaper(ctx),
	})
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", o.listen)
	if err != nil {
		return errors.Join(err, guest.Close())
	}
	closed := make(chan error, 1)
	context.AfterFunc(ctx, func() { closed <- guest.Close() })
	_ = guest.Serve(listener)
	stop()
	return <-closed
}

// plainReaper reaps orphans too where this is PID 1 of a container.
func plainReaper(ctx context.Context) *reaper.Reaper {
	if os.Getpid() == 1 {
		return reaper.NewInit(ctx)
	}
	return reaper.NewOwn()
}

package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

type createFlags struct {
	vcpus, memory, disk int
	timeout             string
	env, metadata       pairs
	runtime             string
	cold                bool
	idempotencyKey      string
	quiet               bool
}

func (a *app) createCommand() *cobra.Command {
	var f createFlags
	cmd := &cobra.Command{
		Use:   "create [TEMPLATE|SNAPSHOT]",
		Short: "Create a sandbox and print its id",
		Long: `Create a sandbox from a template (default: base) or a snapshot and print its id once it takes commands.

The first start of a template's new size boots once, which takes seconds; later ones restore that memory.

A snapshot starts with the processes that it holds, and fixes what they ran with: vCPUs, memory, disk and
runtime are the snapshot's. Leave them out; another one is refused, but a larger disk where the runtime can
grow one. A template with memory (see ` + "`roost template create`" + `) starts with its processes at its own sizes and
runtime, which are then the default, and boots at others.

--runtime takes another of the host's runtimes than its best: ` + "`roost doctor`" + ` lists them, with the
isolation that each gives (hardware, sentry, emulated). A sandbox keeps its runtime for life.`,
		Example: `  id=$(roost create)
  roost create base --vcpus 2 --memory-mb 1024 --timeout 30m
  roost create --env MODE=test --metadata owner=ci --json
  roost create --runtime qemu
  roost create $(roost snapshot create $id)`,
		Args: takes("[TEMPLATE|SNAPSHOT]"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		body, err := f.request(cmd, args)
		if err != nil {
			return usage(cmd, "%s", err.Error())
		}
		return a.run(func(ctx context.Context, c *client, _ []string) error {
			return a.create(ctx, c, body, f)
		})(cmd, args)
	}
	f.register(cmd)
	return cmd
}

func (f *createFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.IntVar(&f.vcpus, "vcpus", 0, "virtual CPUs (default: 1, or what the snapshot has)")
	flags.IntVar(&f.memory, "memory-mb", 0, "memory in MiB (default: 512, or what the snapshot has)")
	flags.IntVar(&f.disk, "disk-size-mb", 0, "root disk in MiB (default: 5120, or what the snapshot has)")
	flags.StringVar(&f.timeout, "timeout", "5m", "pause after so long without activity: seconds, 5m, or 0 for never")
	flags.Var(&f.env, "env", "environment of every command in it (repeatable)")
	flags.Var(&f.metadata, "metadata", "labels of your own (repeatable)")
	flags.BoolVar(&f.cold, "cold", false, "boot a kernel instead of restoring the template's memory (slower)")
	flags.StringVar(&f.runtime, "runtime", "", "what runs it: firecracker, qemu or gvisor (default: what the host does best, or what the snapshot needs)")
	flags.StringVar(&f.idempotencyKey, "idempotency-key", "", "a repeated key returns the sandbox that the first one made")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "no progress on stderr")
}

func (f *createFlags) request(cmd *cobra.Command, args []string) (v1.CreateSandbox, error) {
	idleSeconds, err := parseSeconds(f.timeout)
	if err != nil {
		return v1.CreateSandbox{}, err
	}
	body := v1.CreateSandbox{
		Vcpus: given(cmd, "vcpus", f.vcpus), MemoryMb: given(cmd, "memory-mb", f.memory),
		DiskSizeMb: given(cmd, "disk-size-mb", f.disk), IdleTimeoutS: given(cmd, "timeout", idleSeconds),
		Env: f.env.asMap(), Metadata: f.metadata.asMap(), Runtime: nonEmpty(f.runtime), Cold: given(cmd, "cold", f.cold),
	}
	if len(args) > 0 {
		body.Template = &args[0]
	}
	return body, nil
}

// createdSandbox is the stream of a create.
var createdSandbox = making[v1.Sandbox]{
	what: "the sandbox",
	look: "`roost ls -a` shows whether it was made; --idempotency-key makes trying again safe",
	take: func(e madeEvent) *v1.Sandbox { return e.Sandbox },
}

func (a *app) create(ctx context.Context, c *client, body v1.CreateSandbox, f createFlags) error {
	progress := startBusy(f.quiet, "creating a sandbox")
	params := &v1.CreateSandboxParams{IdempotencyKey: nonEmpty(f.idempotencyKey)}
	//nolint:bodyclose // made closes it.
	sandbox, err := createdSandbox.made(c.api.CreateSandbox(ctx, params, body, acceptStream))(progress)
	progress.stop()
	if err != nil {
		return on(text(body.Template), err)
	}
	if a.json {
		return printJSON(os.Stdout, sandbox)
	}
	if !f.quiet && isTerminal(os.Stderr) {
		_, _ = fmt.Fprintf(os.Stderr, "roost: it runs in %s, isolation %s\n", printable(sandbox.Runtime), printable(sandbox.Isolation))
	}
	_, err = fmt.Fprintln(os.Stdout, sandbox.Id)
	return err
}

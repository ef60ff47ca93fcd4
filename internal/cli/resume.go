package cli

import (
	"context"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

func (a *app) resumeCommand() *cobra.Command {
	var cold bool
	cmd := &cobra.Command{
		Use:   "resume ID...",
		Short: "Wake paused sandboxes, or start failed and lost ones again",
		Long: `Wake paused sandboxes, with their processes as they were. Resuming a running one is a success.

--cold boots from the disk instead of restoring memory: processes are not there. It also starts a
failed or lost sandbox again, from what is left, and says on stderr what that was:
  - a microVM: its disk as it was when it ended, as after a power cut;
  - gVisor keeps memory and disk in one, so it goes back to its last pause, or to the snapshot or
    fork that it was made from: what came later is lost. One that has neither does not start; nor
    does a paused one with memory, which needs no --cold.

The exit code is 3 when what was saved is damaged: nothing was started, and --cold may still work.
With --json one sandbox is printed as it is, several as {"sandboxes":[…],"failed":[{"id","error"}]}.`,
		Example: `  roost resume $id
  roost resume $(roost ls -q --state paused)
  roost resume --cold $(roost ls -q --state lost)`,
		Args: takes("ID…"),
	}
	cmd.RunE = a.onSandboxes("resuming", func(ctx context.Context, c *client, id string) (v1.Sandbox, error) {
		sandbox, err := answer[v1.Sandbox](c.api.ResumeSandboxWithResponse(ctx, id, v1.Resume{Cold: given(cmd, "cold", cold)}))
		return sandbox, orCold(id, cold, err)
	}, func(s v1.Sandbox) {
		if s.Reason != nil && *s.Reason != "" {
			a.tell("%s: %s", s.Id, *s.Reason) // What it started from, when that was not its memory.
		}
	})
	cmd.Flags().BoolVar(&cold, "cold", false, "boot from the disk instead of restoring memory")
	return cmd
}

// orCold adds what is left to try when saved memory is damaged and the server had no hint.
func orCold(id string, cold bool, err error) error {
	if cold || !fault.Is(err, fault.DataLoss) || fault.HintOf(err) != "" {
		return err
	}
	return &fault.Error{Kind: fault.DataLoss, Err: err, Hint: "`roost resume --cold " + id + "` starts a microVM from its disk alone; else restore the file from a backup"}
}

package firecracker

import (
	"context"

	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/firecracker/api"
)

// refillMS is in what time a limiter lets through what its rate gives: short enough that a guest
// does not stand still for long, long enough that one large request fits.
const refillMS = 1000

// limiter bounds bytes a second; a rate of 0 is no bound, and takes one away.
func limiter(rate int64) *api.RateLimiter {
	if rate <= 0 {
		return &api.RateLimiter{Bandwidth: &api.TokenBucket{}}
	}
	return &api.RateLimiter{Bandwidth: &api.TokenBucket{Size: rate, RefillMS: refillMS}}
}

// limitRates gives a restored VM this driver's rates: its state has those of the one that saved it.
func (vm *VM) limitRates(ctx context.Context, cfg vmm.Config) error {
	if len(cfg.Drive) > 0 {
		if err := vm.api.PatchDrive(ctx, api.DrivePatch{ID: diskID, RateLimiter: limiter(vm.d.o.DiskRate)}); err != nil {
			return err
		}
	}
	if cfg.TapName == "" {
		return nil
	}
	rate := limiter(vm.d.o.NetRate)
	return vm.api.PatchNetworkInterface(ctx, api.NetworkInterfacePatch{ID: netID, RxRateLimiter: rate, TxRateLimiter: rate})
}

module wallet

go 1.18

require (
	google.golang.org/grpc v1.60.0
	google.golang.org/protobuf v1.33.0
)
